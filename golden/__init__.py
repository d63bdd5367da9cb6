"""Everything that leaves the simulator: golden bundles, their formats and verification, and the command `intsim`.

`FORMAT.md` in this folder states the files exactly.  Nothing is imported here, so that `import golden` costs nothing.
"""
