"""Find an HDF5 filter that a dataset needs and that is not installed here."""

from contextlib import suppress

import h5py

NAMES = {
    4: "szip",
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "Bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}  # from the HDF Group's list of registered filters


def missing_filter(dataset: h5py.Dataset) -> str | None:
    """The missing filter and its cure, in one clause; None if every chunk can be decoded. Decodes nothing."""
    settings = dataset.id.get_create_plist()
    for place in range(settings.get_nfilters()):
        number = settings.get_filter(place)[0]
        if _available(number) or not _used(dataset, place):
            continue
        cure = "pip install hdf5plugin, which is then found by itself" if number != 4 else "use an HDF5 library that has it"
        name = f"{number} ({NAMES[number]})" if number in NAMES else f"{number}"
        return (
            f"HDF5's filter {name}, which is not installed here; {cure}, or set HDF5_PLUGIN_PATH to the folder that holds it, "
            "or rewrite the file where it can be read: h5repack -f GZIP=4 OLD NEW"
        )
    return None


def _available(number: int) -> bool:
    """Whether a filter is installed, hdf5plugin's included."""
    if not h5py.h5z.filter_avail(number):
        with suppress(Exception):  # the import registers its filters; if built for another HDF5, it may raise anything
            import hdf5plugin  # noqa: F401
    return bool(h5py.h5z.filter_avail(number))


def _used(dataset: h5py.Dataset, place: int) -> bool:
    """Whether a chunk went through the filter: a writer without an optional filter skips it."""
    return bool(dataset.id.chunk_iter(lambda chunk: None if chunk.filter_mask >> place & 1 else True))
