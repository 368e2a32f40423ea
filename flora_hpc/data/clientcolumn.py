"""A column that says something of each client, such as its device: of the file of clients, or of the images that a client holds."""

from flora_hpc.data.holdings import Holdings
from flora_hpc.data.images import Column, Images
from flora_hpc.errors import UserError, did_you_mean


def read(holdings: Holdings, images: Images, name: str, key: str) -> list[str]:
    """The text of column `name` for each client, (num_clients,).

    `images` are those of the whole dataset. Raises UserError, with the option `key` that names the column, where there is no such
    column, or where images of one client differ in it.
    """
    if name in holdings.columns:
        texts = list(holdings.columns[name])
    elif name in images.columns:
        column = images.columns[name]()
        texts = [only(column, holdings, client) for client in range(holdings.num_clients)]
    else:
        names = sorted({*holdings.columns, *images.columns})
        has = f"they have {', '.join(names)}" if names else "they have none"
        raise UserError(f"{key}: neither data nor clients have a column '{name}'{did_you_mean(name, names)} ({has})")
    if "" in texts:
        raise UserError(
            f"{key}: client {texts.index('')} has no value in column '{name}', or images with several values; give each client one"
        )
    return texts


def only(column: Column, holdings: Holdings, client: int) -> str:
    """The text that all images of a client have in a column (num_images,); empty where they differ."""
    texts = {str(value).strip() for value in column[holdings.examples(client)].tolist()}
    return texts.pop() if len(texts) == 1 else ""
