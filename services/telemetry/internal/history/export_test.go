package history

// Queued is how many batches wait for a transaction.
func (s *Store) Queued() int { return len(s.queue) }

// EncodePoints and DecodePoints are the form of a chunk's plaintext.
var EncodePoints, DecodePoints = encodePoints, decodePoints
