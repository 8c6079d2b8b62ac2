"""The Pulumi engine and its plugins: from PATH, the cache, a mirror, the official download, or built with Go."""
