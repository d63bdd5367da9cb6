"""Many images on many machines: Dask workers run ranges of images, and the integers are those of one process.

    with Cluster(workers=2) as cluster:                    # or scheduler="tcp://host:8786"
        results = cluster.run(program_file, work, images)

A range's result is a function of the Program's bytes and of the images' pixels alone, so it does not matter who
computes it, how often, or what died before.  Images are read (and decoded) by the client and travel with the range:
no worker needs the files, and two versions of a decoder cannot differ.  Results travel back, except the files of a
bundle, which workers write into its folder (`golden.cluster.bundles`).
"""

from golden.cluster.connect import Cluster
from golden.cluster.ranges import Part
from golden.cluster.worker import Work

__all__ = ["Cluster", "Part", "Work"]
