"""Devices, and the sharding of arrays over them."""
