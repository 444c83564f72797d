package app

// Believe has the chosen context believe other roots from now on. kept is false where it does not keep any itself: they are of a flag, of a file or
// the system's.
func (a *App) Believe(roots []byte) (kept bool, err error) {
	c, err := a.Chosen()
	if err != nil || c.CA == "" {
		return false, err
	}
	d, err := a.Folder()
	if err != nil {
		return false, err
	}
	f, err := d.Read()
	if err != nil {
		return false, err
	}
	stored, ok := f.Find(c.Name)
	if !ok || stored.CA != c.CA {
		return false, nil
	}
	stored.CA = string(roots)
	f.Put(stored)
	return true, d.Write(f)
}
