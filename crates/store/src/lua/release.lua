-- KEYS: lease. ARGV: holder. Returns 1, or 0 if the lease was lost.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    return redis.call('DEL', KEYS[1])
end
return 0
