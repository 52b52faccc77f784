"""Measure svcrun against plain asyncio in the same run: ``python -m benchmarks`` in the top folder.

``targets`` says what is compared and what is to be reached, ``programs`` holds what runs in fresh
processes, one side of a comparison in each.
"""
