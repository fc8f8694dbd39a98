# Aliases of scripts/*; those are the real thing and need no make.
.PHONY: install demo test check up bench soak
install:
	scripts/install run test check
demo test check up bench soak:
	scripts/$@
