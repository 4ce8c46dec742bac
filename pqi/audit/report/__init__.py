"""An audit written down: record.py as JSON, page.py as one HTML file, pictures.py what is drawn in it."""
