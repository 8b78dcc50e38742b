"""The store: the only room that knows Zarr and the disk. See `FORMAT.md` for what is written."""

from .capture import Capture as Capture
from .capture import SiteInfo as SiteInfo
from .chunking import PlannedSegment as PlannedSegment
from .create import create_store as create_store
from .errors import ConfigMismatchError as ConfigMismatchError
from .errors import DamagedStoreError as DamagedStoreError
from .errors import InvalidStoreError as InvalidStoreError
from .errors import LockedStoreError as LockedStoreError
from .errors import LorascopeError as LorascopeError
from .errors import MissingCaptureError as MissingCaptureError
from .errors import MissingSiteError as MissingSiteError
from .errors import SampleError as SampleError
from .errors import StoreError as StoreError
from .errors import StoreSpaceError as StoreSpaceError
from .errors import StoreWriteError as StoreWriteError
from .layout import Output as Output
from .layout import SampleRows as SampleRows
from .layout import Site as Site
from .reader import Store as Store
from .reader import open_store as open_store
from .results import read_results as read_results
from .results import write_results as write_results
from .verify import Damage as Damage
from .verify import VerifyReport as VerifyReport
from .verify import verify_store as verify_store
from .writer import Writer as Writer
