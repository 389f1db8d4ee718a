"""What the console, the reading API and the command line show, read by a few statements each. Nothing here writes or decides.

One module for each noun; all give plain dicts (datetimes stay datetimes, ids are the external ones), and lists are pages with a
cursor. A thing that does not exist raises NotFound; a filter that cannot be meant raises InputError.
"""
