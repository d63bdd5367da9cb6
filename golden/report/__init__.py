"""`intsim report`: what there is to know of a Program on one page.

`collect` runs the images and gathers everything as plain data (which is also the command's JSON), `page` makes one
self-contained HTML file of it, `terminal` a few tables.
"""
