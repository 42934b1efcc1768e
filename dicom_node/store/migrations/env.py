"""Alembic's entry: migrates on the connection that `Database.migrate` hands over."""

from alembic import context

from dicom_node.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
)
context.run_migrations()
