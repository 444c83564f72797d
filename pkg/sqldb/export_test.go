package sqldb

// Kept is how many statements are kept prepared, in both pools.
func Kept(db *DB) (n int) {
	for _, s := range []*statements{db.written, db.read} {
		if s != nil {
			s.mu.RLock()
			n += len(s.kept)
			s.mu.RUnlock()
		}
	}
	return n
}

// Counted is how many other queries the readers' pool counts.
func Counted(db *DB) int {
	if db.read == nil {
		return 0
	}
	db.read.mu.RLock()
	defer db.read.mu.RUnlock()
	return len(db.read.asked)
}
