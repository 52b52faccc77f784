"""Measure svcrun against plain asyncio in the same run: ``python -m benchmarks`` in the top folder.

``targets`` defines the comparisons and the ratios to reach. ``programs`` has the programs that run
in fresh processes, each with one side of a comparison.
"""
