"""Writers: tables, GeoJSON, pictures and the run record."""
