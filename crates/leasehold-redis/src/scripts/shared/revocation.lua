-- A revoked holder keeps its lock until it expires, but can neither renew nor release it.

-- The reply if the holder no longer holds.
local GONE = -2
-- The last argument of a revocation that is sent again and may have succeeded before.
local AGAIN = 'again'

