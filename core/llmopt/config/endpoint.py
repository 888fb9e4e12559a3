"""Where requests go, with everything that configuration and profile say about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

from llmopt.config.credential import CredentialSource
from llmopt.config.rates import Rates
from llmopt.config.tree import Flags
from llmopt.values.profile import Timeouts
from llmopt.values.secret import Secret
from llmopt.values.settings import Settings
from llmopt.values.shown import names


@frozen(kw_only=True)
class Endpoint:
    """One endpoint of a provider entry, resolved.

    Attributes:
        provider: name of the entry.
        plugin: name of the plugin that serves it.
        index: position among the endpoints of the entry.
        path: of the entry or endpoint in the configuration, for messages.
        base_url: without a slash at the end; "" for an engine inside the process.
        origin: scheme, host in punycode, and port unless it is the scheme's own; "" inside the process.
        weight: its share of the load.
        credential: gives the key of each attempt.
        auth: the profile's scheme: "bearer", "none" or a header's name.
        headers: sent with every request, names in lower case.
        timeouts: in seconds.
        max_retries: retries after a first attempt.
        retry_delay: first back-off in seconds.
        rpm, tpm: requests and tokens a minute, see `rpm_for` and `tpm_for`.
        max_batch_size: most items in one request, None for no limit of the user's.
        max_concurrency: most requests in flight, never more than ``pool_size``.
        pool_size: most connections.
        keepalive: seconds an idle connection is kept.
        compress_requests: whether request bodies go out with gzip.
        stream_usage: whether streams are asked for their usage, see `llmopt.values.profile.Profile`.
        stream_end: what makes a stream complete, likewise.
        cache_ttl: seconds a cached answer is good for, None for the cache's own default.
        cache_dir: folder of the cache, None for the default.
        flags: what llmopt does for its requests.
        options: the plugin's own keys, checked.
        discovered: whether it is asked, unnamed, once a key of the environment is there.
        in_process: whether the plugin answers without a network.
    """

    provider: str
    plugin: str
    index: int = 0
    path: str = ""
    base_url: str = ""
    origin: str = ""
    weight: float = 1.0
    credential: CredentialSource
    auth: str = "bearer"
    headers: Mapping[str, str] = field(factory=dict, repr=names)
    timeouts: Timeouts = field(factory=Timeouts)
    max_retries: int = 2
    retry_delay: float = 1.0
    rpm: Rates = field(factory=Rates)
    tpm: Rates = field(factory=Rates)
    max_batch_size: int | None = None
    max_concurrency: int = 16
    pool_size: int = 64
    keepalive: float = 60.0
    compress_requests: bool = False
    stream_usage: bool = True
    stream_end: Literal["done", "finish"] = "finish"
    cache_ttl: float | None = None
    cache_dir: str | None = None
    flags: Flags = field(factory=Flags)
    options: Mapping[str, Any] = field(factory=dict, repr=names)
    discovered: bool = True
    in_process: bool = False

    def rpm_for(self, *names: str) -> float | None:
        """Requests a minute for the first of these models or deployments that is listed."""
        return self.rpm.of(*names)

    def tpm_for(self, *names: str) -> float | None:
        """Tokens a minute, likewise."""
        return self.tpm.of(*names)

    def settings(self, credential: Secret | None) -> Settings:
        """What a hook may know, with the key of one attempt."""
        return Settings(
            provider=self.provider,
            plugin=self.plugin,
            base_url=self.base_url,
            credential=credential,
            credential_kind=self.credential.kind,
            auth=self.auth,
            headers=self.headers,
            options=self.options,
        )
