"""Parsing of base_url: Azure shows the URL of a resource in many forms.

``https://r.openai.azure.com``, with ``/openai``, with ``/openai/v1``, with
``/openai/deployments/d`` and with the path of an operation behind it all mean the same resource; a
gateway may be in front with another path.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

from attrs import frozen

from llmopt import Settings

CLASSIC_VERSION: Final = "2024-10-21"
"""The last dated version that is generally available."""

_FORM: Final = re.compile(
    r"(?P<root>[a-z]+://[^/]*(?:/.*?)?)/openai(?:/(?P<v1>v1)|/deployments(?:/(?P<deployment>[^/]+))?)?(?:/.*)?",
    re.IGNORECASE,
)
_V1_VERSIONS: Final = ("v1", "preview")


@frozen(kw_only=True)
class Resource:
    """An Azure resource and its interface.

    Attributes:
        root: its URL, up to and without ``/openai``.
        classic: whether to use the classic surface.
        version: value of ``api-version``, None to leave it out.
        deployment: the deployment that is used whatever the model's name; None for the model's name.
    """

    root: str
    classic: bool
    version: str | None
    deployment: str | None


def resource_of(settings: Settings) -> Resource:
    """The resource of the settings.

    The surface is the one that ``surface`` names, else the one of ``base_url``, else the one that
    ``api_version`` belongs to; v1 by default.
    """
    found = _FORM.fullmatch(settings.base_url)
    version = settings.options.get("api_version")
    dated = version is not None and version not in _V1_VERSIONS
    pasted = found["deployment"] if found else None
    surface = settings.options.get("surface")
    if surface is None and found is not None and (found["v1"] or pasted):
        surface = "v1" if found["v1"] else "classic"
    classic = dated if surface is None else surface == "classic"
    deployment = settings.options.get("deployment") or (unquote(pasted) if pasted else None)
    if classic:
        version = version if dated else CLASSIC_VERSION
    elif dated:
        # The v1 surface knows no dates; a variable of the environment may hold one for other programs.
        version = None
    root = found["root"] if found else settings.base_url
    return Resource(root=root, classic=classic, version=version, deployment=deployment)
