"""A graph as a picture: as data, as Mermaid text, as SVG, as characters. All made here, without any tool or network."""
