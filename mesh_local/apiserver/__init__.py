"""The API server: store, verbs, admission, authentication, authorisation, discovery, HTTP."""
