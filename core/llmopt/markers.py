"""The two pluggy markers of llmopt. Plugins take ``hookimpl`` from ``llmopt`` and never import pluggy."""

from __future__ import annotations

from typing import Final

import pluggy

PROJECT: Final = "llmopt"
"""Name of the pluggy project and of the entry-point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
