"""A table with one row per image (CSV, .xlsx, .parquet) and a folder, zip or tar of images."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from distbranch.data.image_files import open_images
from distbranch.data.shard_writer import file_sha256
from distbranch.data.sources.label_options import TableOptions
from distbranch.data.sources.label_table import open_table
from distbranch.data.sources.option_values import Character, Encoding
from distbranch.data.sources.source import Source
from distbranch.data.sources.tables import Problems, read_table


class CsvOptions(TableOptions):
    """Images and a table: binary columns hold 1, 0 or nothing (or 1, -1; or yes, no), others hold class names or tags."""

    source: Literal["csv"] = "csv"
    images: Path = Field(description="Folder, .zip or .tar with the images.")
    table: Path = Field(
        description="Table with a header line and one line per image: CSV (also .gz, .bz2, .xz), .xlsx or .parquet."
    )
    delimiter: Character | None = Field(
        None,
        description="What separates the cells of a CSV: a character or `tab`; found out if empty.",
    )
    encoding: Encoding | None = Field(
        None,
        description="Encoding of a CSV, such as cp1252 (Excel on Windows); UTF-8, or UTF-16 with its mark, if empty.",
    )

    def open(self) -> Source:
        """Learns the tasks from the table. Raises UserError that names everything that is not in order, with its line."""
        images = open_images(self.images)
        problems = Problems(self.table)
        table = read_table(self, problems)
        checksums = {"table_sha256": file_sha256(self.table)}
        if self.images.is_file():
            # The size, for a checksum would read a large archive once more.
            checksums["images_bytes"] = str(self.images.stat().st_size)
        return open_table(self, table, problems, images, self.describe(**checksums))
