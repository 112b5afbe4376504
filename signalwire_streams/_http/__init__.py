"""HTTP: requests, responses, errors, and the aiohttp session that sends one attempt."""
