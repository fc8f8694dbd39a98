"""The HTTP edge of a store: WebDAV, the extension verbs, the JSON API, rights and the access log."""
