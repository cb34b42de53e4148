"""The one part that is compiled; all else is in pyproject.toml.

Without a C compiler the package is installed all the same, and reads a cache by Python's calls.
"""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "cache._row_reads",
            sources=["cache/row_reads.c"],
            extra_compile_args=["-O3"],
            optional=True,
        )
    ]
)
