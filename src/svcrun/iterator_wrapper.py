"""Generators that run in threads, under their names in aiomisc."""

from svcrun.thread_pool import (
    ChannelClosed,
    FromThreadChannel,
    IteratorWrapper,
    IteratorWrapperSeparate,
)

__all__ = ("ChannelClosed", "FromThreadChannel", "IteratorWrapper", "IteratorWrapperSeparate")
