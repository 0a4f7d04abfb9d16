// Offer the classes that `mitoscan rescore --review` understands in QuPath's list of classes.
// QuPath 0.4 or later; run once a project.

import qupath.lib.gui.QuPathGUI
import qupath.lib.objects.classes.PathClass

def available = QuPathGUI.getInstance().getAvailablePathClasses()
[['AMF', 213, 94, 0], ['NMF', 0, 114, 178], ['not MF', 120, 120, 120]].each { name, r, g, b ->
    def wanted = PathClass.fromString(name)
    wanted.setColor(r, g, b)
    if (!available.contains(wanted)) available.add(wanted)
}
