"""Plugins for providers of another shape than the common dialect, as their authors would write them: chats alone."""
