"""Report to Sentry with raven; the adapters of raven and of aiohttp for it."""
