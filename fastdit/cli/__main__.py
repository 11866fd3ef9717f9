"""`python -m fastdit.cli`."""

from fastdit.cli import main

raise SystemExit(main())
