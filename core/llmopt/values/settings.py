"""What a hook may know of the endpoint it works for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import evolve, field, frozen

from llmopt.values.secret import Secret
from llmopt.values.shown import names


@frozen(kw_only=True)
class Settings:
    """One endpoint of one provider entry, resolved for one attempt.

    Attributes:
        provider: name of the entry.
        plugin: the name that the plugin serves it under, which tells the providers of a general plugin apart.
        base_url: without a slash at the end; "" for an engine inside the process.
        credential: the key or token of this attempt, None when there is none.
        credential_kind: "key" for a configured or environment key, "token" for one that a token
            provider gave.
        auth: the profile's scheme: "bearer", "none" or a header's name.
        headers: configured headers of the entry.
        options: the plugin's own keys, as its profile declares them.
    """

    provider: str
    plugin: str = ""
    base_url: str = ""
    credential: Secret | None = None
    credential_kind: Literal["key", "token"] = "key"
    auth: str = "bearer"
    headers: Mapping[str, str] = field(factory=dict, repr=names)
    options: Mapping[str, Any] = field(factory=dict, repr=names)

    def with_headers(self, headers: Mapping[str, str | None]) -> Settings:
        """The same with further headers; those that are None are left out."""
        added = {name: value for name, value in headers.items() if value is not None}
        if not added:
            return self
        return evolve(self, headers={**self.headers, **added})

    def auth_headers(self) -> dict[str, str]:
        """The header that carries the credential, by the profile's scheme; empty without one."""
        if self.credential is None or self.auth == "none":
            return {}
        if self.auth == "bearer":
            return {"authorization": f"Bearer {self.credential.reveal()}"}
        return {self.auth: self.credential.reveal()}
