"""The OpenAPI 3.1 document, made from the endpoints' declared types and the job types that there are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec
from msgspec import Struct

from jobvisor import __version__
from jobvisor.api.call import Endpoint
from jobvisor.api.problems import MEDIA_TYPE
from jobvisor.api.wire import INT_MAX, PATH_OR_VOLUME, Problem, Start
from jobvisor_workers import registry
from jobvisor_workers.jobtype import PIPE, Resource
from jobvisor_workers.resources import uri

REF = "#/components/schemas/{name}"
#: What any request can be answered with.
ALWAYS = (400, 404, 405, 408, 413, 415, 431, 500, 503)
PATH_PARAMETERS = {
    "id": {"type": "integer", "minimum": 1, "maximum": INT_MAX},
    "type": {"type": "string", "minLength": 1, "maxLength": 100, "pattern": "^[A-Za-z0-9_.-]+$"},
}


def document(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Everything that can be asked, and what can be answered."""
    endpoints = list(endpoints)
    types: list[Any] = [Problem]
    for endpoint in endpoints:
        types += [each for each in (endpoint.body, endpoint.reply, endpoint.query) if each is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    known = dict(zip([id(each) for each in types], schemas, strict=True))
    _declare_jobs(components)
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, known, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "jobvisor",
            "version": __version__,
            "description": "Job control for storage. Served on a Unix socket; who asks is known from the kernel.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _operation(endpoint: Endpoint, known: dict[int, Any], components: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}{endpoint.path.removeprefix('/v1')}").strip("_"),
        "summary": endpoint.summary,
        "parameters": [*_path_parameters(endpoint), *_query_parameters(endpoint.query, components)],
    }
    if endpoint.takes_key:
        operation["parameters"].append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "pattern": "^[!-~]{1,100}$"},
                "description": "a request that is repeated with the same key starts no second job",
            }
        )
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": known[id(endpoint.body)]}},
        }
    elif endpoint.takes_stream:
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    answer: dict[str, Any] = {"description": HTTPStatus(endpoint.status).phrase}
    if endpoint.reply is not None:
        answer["content"] = {endpoint.media: {"schema": known[id(endpoint.reply)]}}
    elif endpoint.status != 204:
        answer["content"] = {endpoint.media: {"schema": {}}}
    problem = {"content": {MEDIA_TYPE: {"schema": known[id(Problem)]}}}
    operation["responses"] = {
        str(endpoint.status): answer,
        **{
            str(status): {"description": HTTPStatus(status).phrase, **problem}
            for status in sorted({*ALWAYS, 403, *endpoint.problems})
        },
    }
    if issubclass(endpoint.query, Struct) and "wait" in endpoint.query.__struct_fields__:
        operation["responses"]["202"] = {**answer, "description": "Requested; it is not true yet"}
    return operation


def _path_parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "path", "required": True, "schema": PATH_PARAMETERS[name]}
        for name in re.findall(r"{(\w+)}", endpoint.path)
    ]


def _query_parameters(query: type[Struct], components: dict[str, Any]) -> list[dict[str, Any]]:
    schema = components.pop(query.__name__, None) or msgspec.json.schema(query)["$defs"][query.__name__]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", []), "schema": _not_null(each)}
        for name, each in schema["properties"].items()
    ]


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is left out is left out; there is no null in a query."""
    if "anyOf" not in schema:
        return schema
    kept = [each for each in schema["anyOf"] if each != {"type": "null"}]
    assert len(kept) == 1
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**kept[0], **rest}


def _declare_jobs(components: dict[str, Any]) -> None:
    """The `job` of a start request is one of the job types, told apart by `type`."""
    job_types = []
    for name in registry.names():
        try:
            job_types.append(registry.get(name))
        except Exception:  # a package that does not load: its type cannot be started, GET /v1/types says why
            pass
    # Of their own names, since what other packages call their classes is not known.
    prefix = "job."
    schemas, found = msgspec.json.schema_components(job_types, ref_template=REF.format(name=f"{prefix}{{name}}"))
    components |= {f"{prefix}{name}": schema for name, schema in found.items()}
    for job_type, schema in zip(job_types, schemas, strict=True):
        for field, resource in job_type.resources().items():
            _make_absolute(components[schema["$ref"].rpartition("/")[2]]["properties"][field], resource)
    components[Start.__name__]["properties"]["job"] = {
        "oneOf": schemas,
        "discriminator": {
            "propertyName": "type",
            "mapping": {each.name(): schema["$ref"] for each, schema in zip(job_types, schemas, strict=True)},
        },
    }


def _make_absolute(schema: dict[str, Any], resource: Resource) -> None:
    """What the library would take as relative to the current directory means nothing here."""
    pattern = PATH_OR_VOLUME if resource.kind == "volume" else f"^{uri.POOL_PATTERN}$"
    for each in (schema, *schema.get("anyOf", [])):
        if each.get("type") == "string":
            each["pattern"] = f"^{PIPE}$|{pattern}" if resource.piped else pattern
