// Write all objects of the open slide, corrections and drawn figures too, for `mitoscan rescore --review`.
// QuPath 0.4 or later. Set FOLDER to a place outside of mitoscan's results.

import qupath.lib.common.GeneralTools

def FOLDER = 'C:/path/to/reviews'

def slide = GeneralTools.getNameWithoutExtension(getCurrentServer().getMetadata().getName())
mkdirs(FOLDER)
def path = buildFilePath(FOLDER, slide + '.geojson')
exportAllObjectsToGeoJson(path, 'FEATURE_COLLECTION')
println 'Now run: mitoscan rescore RESULTS/' + slide + ' --review "' + path + '"'
