"""HTTP: requests, responses and errors, the aiohttp session, and one attempt over it."""
