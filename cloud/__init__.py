"""The fallback: engines that answer from a model folder, a service that batches for them, and clients of clouds.

Owns nothing itself and imports none of its modules, so that `cloud.clients` stays as light as a device needs it.
"""
