"""Generators that run in threads, under the names that aiomisc has for them."""

from svcrun.thread_pool import (
    ChannelClosed,
    FromThreadChannel,
    IteratorWrapper,
    IteratorWrapperSeparate,
)

__all__ = ("ChannelClosed", "FromThreadChannel", "IteratorWrapper", "IteratorWrapperSeparate")
