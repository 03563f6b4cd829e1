"""The pure rooms: names, settings, hosts, plans."""
