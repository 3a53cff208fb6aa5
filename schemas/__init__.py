"""Topics, events and Avro schemas: the contract with readers of the log. Modules here must not import other packages of
the product, except `nigredo.errors`.
"""
