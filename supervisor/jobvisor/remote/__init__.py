"""The client's end of the API: what the Client for threads and the one for asyncio have in common."""
