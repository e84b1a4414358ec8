-- The time of the server since 1970, read once: NOW in ms, NOW_MICROS in us.
local TIME = redis.call('TIME')
local NOW_MICROS = TIME[1] * 1000000 + TIME[2]
local NOW = math.floor(NOW_MICROS / 1000)

