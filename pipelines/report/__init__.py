"""A report of runs as one HTML file: ``report`` writes it.

- ``gathering``: what a run folder of any host tells, with what was recorded of its tests;
- ``charts``, ``drawing``: figures that follow the page's colours; ``previews``: pictures and texts of samples;
- ``page.html``: the page, in which all that comes from data is escaped.
"""
