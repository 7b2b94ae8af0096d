"""An object and a range become bytes from elsewhere. Runs on asyncio; knows no cache."""
