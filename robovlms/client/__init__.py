"""A robot's side of the wire: needs numpy, websockets and msgpack, and no torch."""

from robovlms.client.asynchronous import AsyncPolicyClient
from robovlms.client.blocking import BusyError, PolicyClient, RefusedError
from robovlms.client.joining import Counters

__all__ = ["AsyncPolicyClient", "BusyError", "Counters", "PolicyClient", "RefusedError"]
