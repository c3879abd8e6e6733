"""The HTTP API of a supervisor: the server's side. `jobvisor.client` is the other end."""
