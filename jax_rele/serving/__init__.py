"""A service on exported bundles: scores, embeddings and search over HTTP, and a page for judges.

`jax-rele serve DIR` starts it. Modules: `batcher` (rows of several requests in one batch), `service` (what a request
asks of the models), `catalogue` (items that can be searched), `grades` (a file of what judges say), `bodies` (what
requests and answers hold), `app` (routes), `command`.
"""
