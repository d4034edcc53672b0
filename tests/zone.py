"""DNS in three dictionaries, for sip.locate."""

from __future__ import annotations

from sip.locate import NaptrRecord, SrvRecord


class Zone:
    """DNS out of three dictionaries."""

    def __init__(
        self,
        addresses: dict[str, list[str]],
        srv: dict[str, list[SrvRecord]] | None = None,
        naptr: dict[str, list[NaptrRecord]] | None = None,
    ) -> None:
        self._addresses, self._srv, self._naptr = addresses, srv or {}, naptr or {}

    async def naptr(self, name: str) -> list[NaptrRecord]:
        return self._naptr.get(name, [])

    async def srv(self, name: str) -> list[SrvRecord]:
        return self._srv.get(name, [])

    async def addresses(self, name: str) -> list[str]:
        return self._addresses.get(name, [])
