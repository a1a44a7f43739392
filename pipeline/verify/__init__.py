"""`beamcam verify`: proof that a run is whole, for runs larger than memory and from people who are not trusted.

run        the walk through a run: summary, manifest, shards, folders
manifest   its parts, shard by shard
shards     one shard's files against its marker and its part of the manifest
columns    the rules for rows, for all rows at once
problems   what is wrong, in sentences; JSON files read without believing a word of them
"""

from pipeline.verify.problems import Problem
from pipeline.verify.run import TOLD, Told, verify_run

__all__ = ["TOLD", "Problem", "Told", "verify_run"]
