"""One exchange over the network, and the middlewares around it. aiohttp lives here."""
