// Load a slide's findings.geojson and colour its figures by p_atypical: blue 0, grey the middle, orange 1.
// QuPath 0.4 or later. Open the slide first; set RESULTS to the folder that `mitoscan run` wrote to.

import qupath.lib.common.ColorTools
import qupath.lib.common.GeneralTools

def RESULTS = 'C:/path/to/results'
def COLOUR_BY_SCORE = true   // false: the colours of the classes AMF and NMF

def slide = GeneralTools.getNameWithoutExtension(getCurrentServer().getMetadata().getName())
def file = new File(RESULTS, slide + '/findings.geojson')
if (!file.exists()) {
    println 'There is no ' + file + ': set RESULTS, and see that the slide has its own file name in the project.'
    return
}
importObjectsFromFile(file.getAbsolutePath())

if (COLOUR_BY_SCORE) {
    def blue = [0, 114, 178], grey = [225, 225, 225], orange = [213, 94, 0]
    getDetectionObjects().each { figure ->
        double p = figure.getMeasurementList().get('p_atypical')
        if (Double.isNaN(p)) return   // added by a reviewer: no score
        def from = p < 0.5 ? blue : grey
        def to = p < 0.5 ? grey : orange
        double share = p < 0.5 ? p * 2 : p * 2 - 1
        def rgb = (0..2).collect { Math.round(from[it] + (to[it] - from[it]) * share) as int }
        figure.setColor(ColorTools.packRGB(rgb[0], rgb[1], rgb[2]))
    }
}
fireHierarchyUpdate()
println getDetectionObjects().size() + ' mitotic figures loaded'
