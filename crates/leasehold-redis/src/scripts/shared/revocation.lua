-- A revoked holder keeps its lock until it expires or is released, but cannot renew it.

-- The reply if the holder no longer holds.
local GONE = -2
-- The last argument of a revocation that is sent again and may have succeeded before.
local AGAIN = 'again'

