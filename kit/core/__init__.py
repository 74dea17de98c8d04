"""What everything else is made of: errors, tables, parameters, random streams, files."""
