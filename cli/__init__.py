"""The commands: ``capture-run``, ``analyze`` and ``lorascope``.

The only room that prints, and the only one that turns errors into messages and exit codes. Rooms
are imported inside the commands, so that ``--help`` answers at once.
"""
